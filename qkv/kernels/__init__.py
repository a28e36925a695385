"""Compiled kernels: a decoder's whole step as one call of a small C++ library, built at first use.

Reading order of the sources: lanes.h (sixteen floats), blocks.h (packed weights), products.h (the arithmetic),
attention.h (pages), pointwise.h, pool.h (threads), model.h, walk.h (the layers), step.cpp. build.py compiles and keeps
them, library.py names their functions.
"""
