// What goes back: action chunks and the greeting, in openpi's key order.
#pragma once

#include <string>

#include "client/wire_fields.h"
#include "serve/model_card.h"
#include "serve/request.h"

namespace tendon {

// {actions: float64 [horizon, dim], policy_timing, server_timing}; a request_id comes last.
std::string write_reply(const Reply& reply);

// RoboArena wants the array alone, as float32.
std::string write_bare_actions(const ActionChunk& actions);

// The first message of a connection.
std::string write_greeting(const ModelCard& card, Dialect dialect);

}  // namespace tendon
