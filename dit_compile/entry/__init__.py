"""The recommended entry, ``dit_compile.compile``: what a backend alone cannot do, before Dynamo traces the model."""
