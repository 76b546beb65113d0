"""What all pages share: the context, the frame around them, the state of each window, the registry of pages."""
