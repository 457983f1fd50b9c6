# What the user's Julia code may fail with, and the packages that the extensions need.

"The user's Julia code failed; the message is for the user."
struct FieldFailure <: Exception
    message::String
end

Base.showerror(io::IO, e::FieldFailure) = print(io, e.message)

"What an error says, in its first lines."
function told(error)
    lines = split(strip(sprint(showerror, error)), '\n')
    return join(lines[1:min(end, 6)], '\n')
end

"What stands in front of the extensions: the package that each needs."
const PACKAGES = Dict(
    :componentarrays => Base.PkgId(Base.UUID("b0b7db55-cfe3-40fc-9ded-d10e2dbeff66"), "ComponentArrays"),
    :diffeqflux => Base.PkgId(Base.UUID("aae7a2af-3d4f-5e19-a356-7da93b79d9d0"), "DiffEqFlux"),
    :zygote => Base.PkgId(Base.UUID("e88e6eb3-aa80-5325-afca-941959d7151f"), "Zygote"),
    :forwarddiff => Base.PkgId(Base.UUID("f6369f11-7733-5829-9624-2563aa707210"), "ForwardDiff"),
    :reversediff => Base.PkgId(Base.UUID("37e2e3b7-166d-5795-8a7a-e32c996b4267"), "ReverseDiff"),
    :enzyme => Base.PkgId(Base.UUID("7da242da-08ed-463a-9acd-ee780be4f1d9"), "Enzyme"),
)

"Load the package that an extension needs."
function need(name::Symbol)
    id = PACKAGES[name]
    Base.locate_package(id) === nothing && throw(
        FieldFailure("the Julia package $(id.name) is not in Julia's environment. Add it: using Pkg; Pkg.add(\"$(id.name)\")"),
    )
    load((id,))
    return
end
