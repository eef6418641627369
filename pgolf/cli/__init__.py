"""The command line: one module a stage, each with its options and its `main`; pgolf.run dispatches to them by name."""
