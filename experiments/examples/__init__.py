"""Small programs that show one part of the library each. Every file says at its top how to run it."""
