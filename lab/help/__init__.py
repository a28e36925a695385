"""Pairs of sentences out of the help of a program, for the translator that ships."""
