"""Everything that writes to the Hub: publishing, checkpoints while training, retries."""
