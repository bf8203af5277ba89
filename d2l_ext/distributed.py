"""python -m d2l_ext.distributed: training on several machines, see scale/launch.py."""
import sys

from .scale.launch import main

if __name__ == '__main__':
    sys.exit(main())
