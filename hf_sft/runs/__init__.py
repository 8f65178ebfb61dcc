"""One run: `train`, `evaluate`, `check`, `predict`, each readable from top to bottom.

The only package that knows a whole recipe; the packages below it get their own block and nothing else.
"""
