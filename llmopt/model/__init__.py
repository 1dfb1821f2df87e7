"""A model as data: what it holds, what becomes of it, and what that takes. Types only, no torch."""
