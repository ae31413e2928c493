"""Pictures from and for other programs of this machine and its network: Spout, NDI, Syphon."""
