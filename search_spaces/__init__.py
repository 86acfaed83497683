"""Search spaces: what turns genomes into recipes. Found through `_target_` in a configuration."""
