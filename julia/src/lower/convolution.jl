# Convolutions as matrix products: the windows of a few samples at a time are laid out as columns, `im2col`.
#
# PyTorch's `(batch, channels, height, width)` is Julia's `(width, height, channels, batch)`; `N` is the number of
# spatial dimensions. Shapes below: image `(size..., channels, batch)`, weights `(kernel..., channels / groups,
# channels out)`, result `(out..., channels out, batch)`, columns `(out..., kernel..., channels, samples)`; and, over
# the same memory, weights `(patch, channels out / groups, groups)`, result `(pixels, channels out / groups, groups,
# batch)`, columns `(pixels, patch, groups, samples)`, with `patch = prod(kernel) * channels / groups`.

# ---- products -------------------------------------------------------------------------------------------------

"Calls `f(samples, places)` with the samples of the batch, as many at a time as there are places for."
function inparts(f, batch, n)
    for first in 1:n:batch
        last = min(first + n - 1, batch)
        f(first:last, 1:(last - first + 1))
    end
    return
end

"For each group and sample the product with the weights or their transpose: `c[:, :, g, i] = a[:, :, g, j] * f(w[:, :, g])`."
function multiply!(c::Host, is, a, js, w, f)
    for (i, j) in zip(is, js), g in axes(w, 3)
        mul!(view(c, :, :, g, i), view(a, :, :, g, j), f(view(w, :, :, g)))
    end
    return c
end

# On a device, all samples at once.
function multiply!(c, is, a, js, w, f)
    for g in axes(w, 3)
        batched_mul!(view(c, :, :, g, is), view(a, :, :, g, js), batched(f)(view(w, :, :, g:g)))
    end
    return c
end

batched(::typeof(identity)) = identity
batched(::typeof(transpose)) = batched_transpose

"For each group, add the sum over samples of the products of `dy`, transposed, with the columns."
function add_products!(turned::Host, dy, is, columns, js)
    for (i, j) in zip(is, js), g in axes(dy, 3)
        mul!(view(turned, :, :, g), transpose(view(dy, :, :, g, i)), view(columns, :, :, g, j), true, true)
    end
    return turned
end

function add_products!(turned, dy, is, columns, js)
    each = similar(turned, size(turned, 1), size(turned, 2), length(is))
    for g in axes(dy, 3)
        batched_mul!(each, batched_transpose(view(dy, :, :, g, is)), view(columns, :, :, g, js))
        view(turned, :, :, g) .+= dropdims(sum(each; dims = 3); dims = 3)
    end
    return turned
end

"`y = x ∗ w` (PyTorch's correlation): `y` and `w` as matrices."
function conv!(y, image, w, columns, matrices, window)
    inparts(size(y, 4), size(columns, ndims(columns))) do range, places
        gather!(columns, places, image, range, window)
        multiply!(y, range, matrices, places, w, identity)
    end
    return y
end

"The product of `dy` with the derivative of `conv!` in the image."
function conv_input!(image, dy, w, columns, matrices, window)
    fill!(image, zero(eltype(image)))
    inparts(size(dy, 4), size(columns, ndims(columns))) do range, places
        multiply!(matrices, places, dy, range, w, transpose)
        scatter!(image, range, columns, places, window)
    end
    return image
end

"The product of `dy` with the derivative of `conv!` in the weights; `turned` is for its transpose, which is faster."
function conv_weight!(dw, turned, image, dy, columns, matrices, window)
    fill!(turned, zero(eltype(turned)))
    inparts(size(dy, 4), size(columns, ndims(columns))) do range, places
        gather!(columns, places, image, range, window)
        add_products!(turned, dy, range, matrices, places)
    end
    return permutedims!(dw, turned, (2, 1, 3))
end

# ---- lowering -------------------------------------------------------------------------------------------------

"The buffers that a convolution works with: the columns twice, and the window."
struct Columns
    window::Window
    columns::Int
    matrices::Int
    groups::Int
end

function columns!(l::Lowering, n::Node, rows::Int, image, weight, out)
    T, N, groups = l.T, length(out) - 2, Int(n.attrs["groups"])
    shape = [out[1:N]; weight[1:N]; image[N + 1]]
    function make(like, batch, buffers)
        buffers[rows] === nothing || return nothing
        count = clamp(columns_at_once(like) ÷ max(elements(shape, batch), 1), 1, max(dimsize(out[N + 2], batch), 1))
        return fill!(similar(like, T, (sizes(shape, batch)..., count)), zero(T))
    end
    columns = newbuffer!(l, make; alias = false)
    function split(_, batch, buffers)
        x = buffers[columns]
        x === nothing && return nothing
        pixels = elements(out[1:N], batch)
        return reshape(x, pixels, elements(shape, batch) ÷ (pixels * groups), groups, size(x, ndims(x)))
    end
    return Columns(Window(n), columns, newbuffer!(l, split), groups)
end

"Weights as matrices."
function weights!(l::Lowering, b::Int, weight, groups)
    N = length(weight) - 2
    function make(_, batch, buffers)
        patch, channels = elements(weight[1:(N + 1)], batch), dimsize(weight[N + 2], batch)
        return reshape(buffers[b], patch, channels ÷ groups, groups)
    end
    return newbuffer!(l, make)
end

"The result of a convolution as matrices."
function pixels!(l::Lowering, b::Int, out, groups)
    N = length(out) - 2
    function make(_, batch, buffers)
        pixels, channels, count = elements(out[1:N], batch), dimsize(out[N + 1], batch), dimsize(out[N + 2], batch)
        return reshape(buffers[b], pixels, channels ÷ groups, groups, count)
    end
    return newbuffer!(l, make)
end

"""
Buffers for an image with its padding, and for the part of it that is the image; on a processor there is no padding,
and both are `nothing`.
"""
function padded!(l::Lowering, image, w::Window{N}) where {N}
    T = l.T
    function make(like, batch, _)
        (like isa Array || all(iszero, w.padding)) && return nothing
        inner = sizes(image, batch)
        return fill!(similar(like, T, ntuple(i -> i <= N ? inner[i] + 2w.padding[i] : inner[i], length(inner))), zero(T))
    end
    whole = newbuffer!(l, make; alias = false)
    function middle(_, batch, buffers)
        buffers[whole] === nothing && return nothing
        inner = sizes(image, batch)
        return view(buffers[whole], ntuple(i -> i <= N ? w.padding[i] .+ (1:inner[i]) : Colon(), length(inner))...)
    end
    return whole, newbuffer!(l, middle; contiguous = false)
end

"The image that a convolution reads, with its padding where it needs one."
pad!(::Nothing, ::Nothing, image) = image
pad!(whole, middle, image) = (middle .= image; whole)

"The image that a convolution's transpose writes, and what becomes of it."
unpadded(::Nothing, image) = image
unpadded(whole, image) = whole
unpad!(image, ::Nothing) = image
unpad!(image, middle) = image .= middle

"The expression of an image with its padding."
function with_padding!(l::Lowering, i::Int, w::Window)
    b = materialise!(l, i; contiguous = true)
    whole, middle = padded!(l, l.graph.nodes[i].shape, w)
    return :(pad!($(bufsym(whole)), $(bufsym(middle)), $(bufsym(b))))
end

shape_of(l::Lowering, i) = l.graph.nodes[i].shape

"A buffer for what a convolution by rows works with: `nothing` on a device, and where it is not computed so."
function rows!(l::Lowering, window::Window, image, weight, out, groups)
    function make(like, batch, _)
        like isa Array || return nothing
        shape = sizes.((image, weight, out), batch)
        return Rows{l.T}(shape..., groups, window; l.threads)
    end
    return newbuffer!(l, make; contiguous = false, alias = false)
end

"The same for its transpose; `image` and `out` are those of the convolution."
function turned_rows!(l::Lowering, n::Node, image, weight, out)
    N, groups, window = length(out) - 2, Int(n.attrs["groups"]), Window(n)
    kernel = Tuple{Vararg{Int}}(weight[1:N])
    return rows!(l, transposed(window, kernel), out, Dim[weight[1:N]; weight[N + 2] ÷ groups; image[N + 1]], image, groups)
end

"A convolution by rows where there is memory for it, or by `im2col`."
either(rows::Int, by_rows, by_columns) = Expr(:if, :($(bufsym(rows)) === nothing), by_columns, by_rows)

function lower_op!(l::Lowering, ::Val{:conv}, i, n, into)
    x, w = n.inputs
    rows = rows!(l, Window(n), shape_of(l, x), shape_of(l, w), n.shape, Int(n.attrs["groups"]))
    c = columns!(l, n, rows, shape_of(l, x), shape_of(l, w), n.shape)
    image = with_padding!(l, x, c.window)
    weights = bufsym(weights!(l, materialise!(l, w; contiguous = true), shape_of(l, w), c.groups))
    b = destination!(l, n, into)
    y = bufsym(pixels!(l, b, n.shape, c.groups))
    by_rows = :(conv_rows!($y, $image, $weights, $(bufsym(rows))))
    emit!(l, either(rows, by_rows, call(:conv!, (y, image, weights), c)))
    l.buffer[i] = b
end

function lower_op!(l::Lowering, ::Val{:conv_input}, i, n, into)
    dy, w = n.inputs
    rows = turned_rows!(l, n, n.shape, shape_of(l, w), shape_of(l, dy))
    c = columns!(l, n, rows, n.shape, shape_of(l, w), shape_of(l, dy))
    weights = bufsym(weights!(l, materialise!(l, w; contiguous = true), shape_of(l, w), c.groups))
    y = bufsym(pixels!(l, materialise!(l, dy; contiguous = true), shape_of(l, dy), c.groups))
    b = destination!(l, n, into)
    dx = bufsym(pixels!(l, b, n.shape, c.groups))
    by_rows = :(conv_input_rows!($dx, $y, $weights, $(bufsym(rows))))
    partner = weight_product(l, i, n)
    if partner !== nothing
        x = l.graph.nodes[partner].inputs[1]
        image = bufsym(pixels!(l, materialise!(l, x; contiguous = true), shape_of(l, x), c.groups))
        by_rows = :(conv_pullback_rows!($dx, $image, $y, $weights, $(bufsym(rows))))
        l.rows[partner] = rows
    end
    whole, middle = map(bufsym, padded!(l, n.shape, c.window))
    by_columns = call(:conv_input!, (:(unpadded($whole, $(bufsym(b)))), y, weights), c)
    emit!(l, either(rows, by_rows, Expr(:block, by_columns, :(unpad!($(bufsym(b)), $middle)))))
    l.buffer[i] = b
end

"""
The product of the same cotangent with the same convolution's derivative in the weights, where the image is there already;
not that of an image of equal numbers, which has no windows.
"""
function weight_product(l::Lowering, i::Int, n::Node)
    dy, w = n.inputs
    function alike(j)
        m = l.graph.nodes[j]
        m.op === :conv_weight && m.inputs[2] == dy && m.inputs[1] < i < j && !haskey(l.rows, j) || return false
        image = m.inputs[1]
        l.graph.nodes[image].op !== :full && shape_of(l, image) == n.shape || return false
        return m.shape == shape_of(l, w) && m.attrs == n.attrs
    end
    k = findfirst(alike, l.users[dy])
    return k === nothing ? nothing : l.users[dy][k]
end

function lower_op!(l::Lowering, ::Val{:conv_weight}, i, n, into)
    x, dy = n.inputs
    l.graph.nodes[x].op === :full && return lower_boxes!(l, i, n, into)
    shared = haskey(l.rows, i)
    rows = shared ? l.rows[i] : turned_rows!(l, n, shape_of(l, x), n.shape, shape_of(l, dy))
    c = columns!(l, n, rows, shape_of(l, x), n.shape, shape_of(l, dy))
    image = with_padding!(l, x, c.window)
    y = bufsym(pixels!(l, materialise!(l, dy; contiguous = true), shape_of(l, dy), c.groups))
    b = destination!(l, n, into)
    dw = weights!(l, b, n.shape, c.groups)
    turned = newbuffer!(l, (like, _, buffers) -> similar(like, l.T, size(buffers[dw])[[2, 1, 3]]))
    products = bufsym(rows)
    if !shared
        matrices = bufsym(pixels!(l, materialise!(l, x; contiguous = true), shape_of(l, x), c.groups))
        products = :(conv_weight_rows!($matrices, $y, $products))
    end
    by_rows = :(put_weights!($(bufsym(dw)), $products))
    emit!(l, either(rows, by_rows, call(:conv_weight!, (bufsym(dw), bufsym(turned), image, y), c)))
    l.buffer[i] = b
end

function call(f::Symbol, arguments, c::Columns)
    w = c.window
    window = :(Window($(w.stride), $(w.padding), $(w.dilation)))
    return Expr(:call, f, arguments..., bufsym(c.columns), bufsym(c.matrices), window)
end
