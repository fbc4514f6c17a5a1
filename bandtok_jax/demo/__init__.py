"""A page in the browser, served on loopback, to see, listen to, edit and generate with one codec."""
