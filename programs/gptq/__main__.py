"""`python -m programs.gptq`."""

from programs.gptq.gptq import main

if __name__ == "__main__":
    main()
