"""Models of other vocabularies or numbers of rows, brought to one before they are merged."""
