"""The frame around all pages: navigation, what a window remembers, notices, what every page is given."""
