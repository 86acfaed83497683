"""What leaves evomerge: recipes as mergekit YAML, and models that plain transformers loads."""
