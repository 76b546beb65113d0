"""What training saves: checkpoints, the adapter it publishes, the digests of its base; and what a run is restored from."""
