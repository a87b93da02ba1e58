"""How one linear lies on disk: a module for each layout, and the table of all."""
