"""The options of the stages, each declared once; importing them imports no torch."""
