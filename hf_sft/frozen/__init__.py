"""What does not move is run once: features of a frozen body, hidden states of its frozen layers."""
