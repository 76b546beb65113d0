"""Building blocks of the interface that several pages use."""
