# Convolutions as matrix products: the windows of a few samples at a time are laid out as columns, `im2col`.
#
# PyTorch's `(batch, channels, height, width)` is Julia's `(width, height, channels, batch)`; `N` is the number of
# spatial dimensions. Shapes below: image `(size..., channels, batch)`, weights `(kernel..., channels / groups,
# channels out)`, result `(out..., channels out, batch)`, columns `(out..., kernel..., channels, samples)`; and, over
# the same memory, weights `(patch, channels out / groups, groups)`, result `(pixels, channels out / groups, groups,
# batch)`, columns `(pixels, patch, groups, samples)`, with `patch = prod(kernel) * channels / groups`.

struct Window{N}
    stride::NTuple{N,Int}
    padding::NTuple{N,Int}
    dilation::NTuple{N,Int}
end

function Window(n::Node)
    read(name) = Tuple(Int(x) for x in Iterators.reverse(n.attrs[name]))
    return Window(read("stride"), read("padding"), read("dilation"))
end

"Number of elements in the columns that are laid out at once: what stays in a processor's cache, or keeps a GPU busy."
columns_at_once(::Array) = 2^16
columns_at_once(::AbstractArray) = 2^24

"Part of the padded image that meets each place `k` of the kernel."
function patch(image, w::Window{N}, k, out) where {N}
    first = ntuple(i -> 1 + (k[i] - 1) * w.dilation[i], Val(N))
    return view(image, ntuple(i -> first[i]:w.stride[i]:(first[i] + (out[i] - 1) * w.stride[i]), Val(N))..., :, :)
end

"The same for windows one pixel apart, as a view that is faster to go through."
function dense_patch(image, w::Window{N}, k, out) where {N}
    first = ntuple(i -> 1 + (k[i] - 1) * w.dilation[i], Val(N))
    return view(image, ntuple(i -> first[i]:(first[i] + out[i] - 1), Val(N))..., :, :)
end

"Part of the columns that belongs to the place `k` of the kernel."
place(columns, ::Window{N}, k) where {N} = view(columns, ntuple(_ -> Colon(), Val(N))..., Tuple(k)..., :, :)

samples(x, range) = view(x, ntuple(_ -> Colon(), Val(ndims(x) - 1))..., range)

function gather!(columns, image, w::Window{N}) where {N}
    out, kernel = size(columns)[1:N], size(columns)[(N + 1):(2N)]
    for k in CartesianIndices(kernel)
        if all(==(1), w.stride)
            place(columns, w, k) .= dense_patch(image, w, k, out)
        else
            place(columns, w, k) .= patch(image, w, k, out)
        end
    end
    return columns
end

"The transpose of `gather!`, added to the image."
function scatter!(image, columns, w::Window{N}) where {N}
    out, kernel = size(columns)[1:N], size(columns)[(N + 1):(2N)]
    for k in CartesianIndices(kernel)
        if all(==(1), w.stride)
            dense_patch(image, w, k, out) .+= place(columns, w, k)
        else
            patch(image, w, k, out) .+= place(columns, w, k)
        end
    end
    return image
end

"Calls `f(samples, places)` with the samples of the batch, as many at a time as there are places for."
function inparts(f, batch, n)
    for first in 1:n:batch
        last = min(first + n - 1, batch)
        f(first:last, 1:(last - first + 1))
    end
    return
end

"For each group and sample the product with the weights or their transpose: `c[:, :, g, i] = a[:, :, g, j] * f(w[:, :, g])`."
function multiply!(c, is, a, js, w, f)
    for (i, j) in zip(is, js), g in axes(w, 3)
        mul!(view(c, :, :, g, i), view(a, :, :, g, j), f(view(w, :, :, g)))
    end
    return c
end

"`y = x ∗ w` (PyTorch's correlation): `y` and `w` as matrices, `image` with its padding."
function conv!(y, image, w, columns, matrices, window)
    inparts(size(y, 4), size(columns, ndims(columns))) do range, places
        gather!(samples(columns, places), samples(image, range), window)
        multiply!(y, range, matrices, places, w, identity)
    end
    return y
end

"The product of `dy` with the derivative of `conv!` in the image, which has its padding."
function conv_input!(image, dy, w, columns, matrices, window)
    fill!(image, zero(eltype(image)))
    inparts(size(dy, 4), size(columns, ndims(columns))) do range, places
        multiply!(matrices, places, dy, range, w, transpose)
        scatter!(samples(image, range), samples(columns, places), window)
    end
    return image
end

"The product of `dy` with the derivative of `conv!` in the weights."
function conv_weight!(dw, image, dy, columns, matrices, window)
    fill!(dw, zero(eltype(dw)))
    inparts(size(dy, 4), size(columns, ndims(columns))) do range, places
        gather!(samples(columns, places), samples(image, range), window)
        for (b, p) in zip(range, places), g in axes(dy, 3)
            mul!(view(dw, :, :, g), transpose(view(matrices, :, :, g, p)), view(dy, :, :, g, b), true, true)
        end
    end
    return dw
end

# ---- lowering -------------------------------------------------------------------------------------------------

"The buffers that a convolution works with: the columns twice, and the window."
struct Columns
    window::Window
    columns::Int
    matrices::Int
    groups::Int
end

function columns!(l::Lowering, n::Node, image, weight, out)
    T, N, groups = l.T, length(out) - 2, Int(n.attrs["groups"])
    shape = [out[1:N]; weight[1:N]; image[N + 1]]
    function make(like, batch, _)
        count = clamp(columns_at_once(like) ÷ max(elements(shape, batch), 1), 1, max(dimsize(out[N + 2], batch), 1))
        return fill!(similar(like, T, (sizes(shape, batch)..., count)), zero(T))
    end
    columns = newbuffer!(l, make)
    function split(_, batch, buffers)
        x = buffers[columns]
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

"A buffer for an image with its padding, and the part of it that is the image."
function padded!(l::Lowering, image, w::Window{N}) where {N}
    T = l.T
    function make(like, batch, _)
        inner = sizes(image, batch)
        return fill!(similar(like, T, ntuple(i -> i <= N ? inner[i] + 2w.padding[i] : inner[i], length(inner))), zero(T))
    end
    whole = newbuffer!(l, make)
    function middle(_, batch, buffers)
        inner = sizes(image, batch)
        return view(buffers[whole], ntuple(i -> i <= N ? w.padding[i] .+ (1:inner[i]) : Colon(), length(inner))...)
    end
    return whole, newbuffer!(l, middle; contiguous = false)
end

"The buffer of an image with its padding."
function with_padding!(l::Lowering, i::Int, w::Window)
    b = materialise!(l, i; contiguous = true)
    all(iszero, w.padding) && return b
    whole, middle = padded!(l, l.graph.nodes[i].shape, w)
    emit!(l, :($(bufsym(middle)) .= $(bufsym(b))))
    return whole
end

shape_of(l::Lowering, i) = l.graph.nodes[i].shape

function lower_op!(l::Lowering, ::Val{:conv}, i, n, into)
    x, w = n.inputs
    c = columns!(l, n, shape_of(l, x), shape_of(l, w), n.shape)
    image = with_padding!(l, x, c.window)
    weights = weights!(l, materialise!(l, w; contiguous = true), shape_of(l, w), c.groups)
    b = destination!(l, n, into)
    y = pixels!(l, b, n.shape, c.groups)
    emit!(l, call(:conv!, (y, image, weights, c.columns, c.matrices), c.window))
    l.buffer[i] = b
end

function lower_op!(l::Lowering, ::Val{:conv_input}, i, n, into)
    dy, w = n.inputs
    c = columns!(l, n, n.shape, shape_of(l, w), shape_of(l, dy))
    weights = weights!(l, materialise!(l, w; contiguous = true), shape_of(l, w), c.groups)
    y = pixels!(l, materialise!(l, dy; contiguous = true), shape_of(l, dy), c.groups)
    b = destination!(l, n, into)
    whole, middle = all(iszero, c.window.padding) ? (b, b) : padded!(l, n.shape, c.window)
    emit!(l, call(:conv_input!, (whole, y, weights, c.columns, c.matrices), c.window))
    whole == b || emit!(l, :($(bufsym(b)) .= $(bufsym(middle))))
    l.buffer[i] = b
end

function lower_op!(l::Lowering, ::Val{:conv_weight}, i, n, into)
    x, dy = n.inputs
    c = columns!(l, n, shape_of(l, x), n.shape, shape_of(l, dy))
    image = with_padding!(l, x, c.window)
    y = pixels!(l, materialise!(l, dy; contiguous = true), shape_of(l, dy), c.groups)
    b = destination!(l, n, into)
    weights = weights!(l, b, n.shape, c.groups)
    emit!(l, call(:conv_weight!, (weights, image, y, c.columns, c.matrices), c.window))
    l.buffer[i] = b
end

function call(f::Symbol, buffers, w::Window)
    return Expr(:call, f, map(bufsym, buffers)..., :(Window($(w.stride), $(w.padding), $(w.dilation))))
end
