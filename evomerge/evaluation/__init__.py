"""Workers: one resident model each, in this process or as Ray actors."""
