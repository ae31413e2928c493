"""Who may call the server, from where and how often, and by which addresses it is reached."""
