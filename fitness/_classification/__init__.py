"""Parts of the fitness on labelled texts."""
