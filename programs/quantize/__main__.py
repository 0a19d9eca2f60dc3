"""`python -m programs.quantize`."""

from programs.quantize.quantize import main

if __name__ == "__main__":
    main()
