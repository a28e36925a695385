"""How the models that ship were made: their data sets, their training, and what judges them.

    python -m lab data emblem                          builds a data set
    python -m lab train recipes/emblem-unet.toml       trains, with the lab's tasks beside the package's
    python -m lab eval emblem                          measures

Place: beside the package, which knows nothing of it and does not ship it. The lab uses all of the package.
"""
