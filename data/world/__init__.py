"""The embedded corpus: statements of facts in many languages, rendered from Unicode CLDR."""
