"""From trained weights to model.pgolf and back: rounding, coding, the file."""
