"""What the lab trains: emblem part by part, and the CLIP beside it."""
