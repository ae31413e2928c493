"""Which pipeline is loaded, and what a load may ask for."""
