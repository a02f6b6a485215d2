"""Other packages' interfaces, on our engines."""
