module PyNODEComponentArraysExt

using ComponentArrays: ComponentArray, ComponentVector, getaxes
using PyNODE: PyNODE

"Parameters with names: the function gets a `ComponentArray` of these axes."
struct Components{A} <: PyNODE.Structure
    axes::A
end

PyNODE.component_structure(zeros::NamedTuple) = Components(getaxes(ComponentArray(zeros)))

PyNODE.structured(s::Components, p) = ComponentArray(p, s.axes)

PyNODE.named(x::ComponentVector) = PyNODE.named(NamedTuple(x))

end
