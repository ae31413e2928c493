"""Several gateways behind one address: whose session an id means, and how requests reach that gateway."""
