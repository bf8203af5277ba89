"""python -m d2l_ext.search: a search for good settings, see studies/search.py."""
import sys

from .studies.search import main

if __name__ == '__main__':
    sys.exit(main())
