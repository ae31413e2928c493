"""How much memory a load takes, and how much this machine has."""
