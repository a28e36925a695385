"""The judge: a network that exists to measure what emblem draws."""
