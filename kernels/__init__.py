"""Eight hand-written operators, each with a plain-torch reference; PyTorch's dispatcher picks the backend by device."""
