"""The program that serves the guest channel inside guests, and its form as one file. It stands on nothing."""
