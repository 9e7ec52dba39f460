-- POST of a 256-byte payload to a key drawn uniformly from a million.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
local body = string.rep("x", 256)
request = function()
  local key = string.format("k%015d", math.random(0, 999999))
  return wrk.format("POST", "/v1/streams/wrk/records/" .. key, nil, body)
end
