"""From the scanner to the network: brain extraction, alignment, and the steps that a case needs."""
