# The parts of a split field, as Python passes them.

"""
    set_split(ints, n_ints)

Integers: the batch; then, for the stiff part and for the other, its kernel, the number of tensors of its `θ`, and for each
its size and address. They are read at once.
"""
function set_split(ints::Int, n_ints::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    batch = next!(r)
    SPLIT[] = Split(read_part(r, batch, :stiff), read_part(r, batch, :nonstiff), 0)
    return
end

function read_part(r::Reader, batch::Int, role::Symbol)
    field = field_for(next!(r), batch, :split, HOST; role)
    read_theta!(field, DEVICES[HOST], r)
    return bind!(field, field.θ)
end
