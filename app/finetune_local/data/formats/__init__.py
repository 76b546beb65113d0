"""One input format each: recognises(sample), read(row). Found by listing."""
