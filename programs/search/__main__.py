"""`python -m programs.search`."""

from programs.search.search import main

if __name__ == "__main__":
    main()
