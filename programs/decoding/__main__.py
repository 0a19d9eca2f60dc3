"""`python -m programs.decoding`."""

from programs.decoding.decoding import main

if __name__ == "__main__":
    main()
