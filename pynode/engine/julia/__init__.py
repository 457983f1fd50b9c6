"""The julia engine: traced fields, solved and differentiated by PyNODE.jl."""
