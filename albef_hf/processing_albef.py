class AlbefProcessor:  # placeholder until the processor lands
    pass
