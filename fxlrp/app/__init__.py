"""The command line: texts and checkpoints go in, heat maps, reports and tables come out."""
