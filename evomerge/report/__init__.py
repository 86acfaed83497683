"""What a finished run found, from its folder alone: paired tests and tables."""
