"""Pictures: figures by name, and the panels that they are put together from."""
